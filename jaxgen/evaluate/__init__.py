# SPDX-License-Identifier: MIT
"""A model is judged here: likelihoods, and what a classifier says of samples.

Users import

    likelihood                             mean_terms, importance_nll
    judge.train, classes.report            a classifier of the data, and its view of samples
"""
