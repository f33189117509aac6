"""Grafana's dashboards: what they show stands here, one module each; ``deploy/grafana/dashboards`` is made from it."""
