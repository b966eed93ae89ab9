"""When a request may start: how many at once, how fast, at what hours, for how much money."""
