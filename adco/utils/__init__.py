"""What every package stands on: errors, files, devices, ranks, randomness. Imports no other package of the project."""
