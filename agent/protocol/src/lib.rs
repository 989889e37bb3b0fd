//! The protocol between a Skep host and the agent in its guest.
