"""The server: who is who, what is protected, and every operation as a durable job."""
