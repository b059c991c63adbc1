"""`from azureml.monitoring import ModelDataCollector` inside an image."""

from scoring_runtime.data_collector import ModelDataCollector

__all__ = ["ModelDataCollector"]
