//! CNI plugin of Skep.
