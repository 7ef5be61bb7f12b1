//! The way there: WebSocket, SSH, host keys, and putting the agent on the other side. Knows neither the engine nor the disk.
