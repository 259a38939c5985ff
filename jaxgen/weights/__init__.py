# SPDX-License-Identifier: MIT
"""Published models to parameter trees and back: files, names, layouts, configs, vocabularies."""
