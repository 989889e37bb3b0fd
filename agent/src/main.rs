//! Skep guest agent.
fn main() {}
