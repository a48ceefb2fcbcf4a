"""The part of the engine that may await: it performs what the exchange asks for, and keeps background work going."""
