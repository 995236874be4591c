"""What a task is: how its rows are read, asked, answered, checked and counted. Standard library only, so that
the device's engine can import it."""
