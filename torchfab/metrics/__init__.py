"""The load of hosts and the state of a job as metrics for other systems.

torchfab/metrics/families.py      what is measured: names, units, labels, from a snapshot of the hosts
torchfab/metrics/prometheus.py    Prometheus' text format
torchfab/metrics/otlp.py          OpenTelemetry's protocol (extra `otlp`)
"""
