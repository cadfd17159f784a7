"""Doctor: from what nodes told to findings and text."""
