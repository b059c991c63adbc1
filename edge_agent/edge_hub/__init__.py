"""The device's local hub: MQTT server, routes, store and forward, workload API."""

from edge_agent.edge_hub.hub import EdgeHub, EdgeHubConfig, EdgeHubStats, Sender

__all__ = ["EdgeHub", "EdgeHubConfig", "EdgeHubStats", "Sender"]
