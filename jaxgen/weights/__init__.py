# SPDX-License-Identifier: MIT
"""This room reads published models into parameter trees and writes them: files, names, configs."""
