"""Tables and pages made from the results alone: neither Ray nor MLflow is needed to read them."""
