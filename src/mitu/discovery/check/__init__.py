"""What a health check asks, a file for each protocol, and the connection that it asks over."""
