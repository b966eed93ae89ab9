"""What everything stands on: JSON, files, disks, text for people, records, a key. One noun a file, and nothing of rows."""
