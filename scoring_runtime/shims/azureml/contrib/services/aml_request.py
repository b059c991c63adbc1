"""`from azureml.contrib.services.aml_request import AMLRequest, rawhttp` inside an image."""

from scoring_runtime.raw_http import AMLRequest, rawhttp

__all__ = ["AMLRequest", "rawhttp"]
