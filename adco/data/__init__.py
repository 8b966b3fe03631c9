"""From files to normalised views on the device."""
