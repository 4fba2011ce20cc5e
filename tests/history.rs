//! The judge of histories is judged: every kind of mistake is planted and found, its clean twin passes, random clean histories pass, and a random mistake in one is found.

#[path = "simulation/checker/mod.rs"]
mod checker;

#[path = "history/clients.rs"]
mod clients;
#[path = "history/planted.rs"]
mod planted;
#[path = "history/random.rs"]
mod random;
