"""`from azureml.contrib.services.aml_response import AMLResponse` inside an image."""

from scoring_runtime.raw_http import AMLResponse

__all__ = ["AMLResponse"]
