//! The control circuit: wiring, control HTTP API, command line; binary quorate.
