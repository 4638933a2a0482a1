"""Station 3: worlds in which tools are called. The protocol, and the two worlds that come with the project."""
