//! Kubernetes YAML and JSON, as text, to the model, with file lines for what is wrong.
