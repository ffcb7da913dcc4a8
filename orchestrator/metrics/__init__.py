"""A run's figures for Prometheus: which there are, how they follow from events, how Ray gets them.

events, status, replay's statistics ──▶ figures.py ──▶ export.py ──▶ Ray's agent ──▶ Prometheus
                                        catalog.py: every name, unit and tag
"""
