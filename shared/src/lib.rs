//! What the toolkit and guac-stress both need. [`parent_death`] makes a program end with the one that started it; [`capacity`]
//! says how many sessions this machine can carry; [`key_counters`] reads what the key-limit library has counted.

pub mod capacity;
pub mod key_counters;
pub mod parent_death;
