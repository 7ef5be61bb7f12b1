//! Two machines in a jar (to be filled).
