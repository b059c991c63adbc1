"""Deployment targets behind one interface: IoT Edge, ACI, Kubernetes, batch, FPGA, local. None is built yet."""
