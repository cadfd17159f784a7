"""Tests of doctor: from nodes' reports to findings and text."""
