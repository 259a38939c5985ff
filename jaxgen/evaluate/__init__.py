# SPDX-License-Identifier: MIT
"""A model is judged here: likelihoods, and what a classifier says of samples.

Users import

    likelihood                             mean_terms, importance_estimates
    quality                                compare, compare_each: beside the floor of real images
    features                               what they are compared by: by_name, RANDOM
    rate_distortion                        train, points: the curve of a VAE over beta
    latents                                where latents are drawn from
    distances, neighbourhoods, modes       its figures, of features; modes of toy distributions
    judge.train, classes.report            a classifier of the data, and its view of samples
"""
