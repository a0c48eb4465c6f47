"""Settings: command line, environment and file to one frozen `Config`. Pure."""
