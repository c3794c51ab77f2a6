"""The review desk: a page on which people look at cells with a model, and correct it.

``python -m wbc_keras.review --model MODEL [--data PATH]``. It computes nothing of its own: the
model's answers are the predictor's, figures those of the evaluation's modules.
"""
