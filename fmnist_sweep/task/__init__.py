"""What this project trains: configuration, data, trials and confirmation."""
