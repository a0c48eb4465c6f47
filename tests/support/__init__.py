"""What tests share: servers, stores, models, certificates."""
