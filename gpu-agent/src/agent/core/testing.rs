//! Circles, orders and nodes for the tests of this module.
