"""What the gateway and the workers must agree on: configuration, records, channels, model facts."""
