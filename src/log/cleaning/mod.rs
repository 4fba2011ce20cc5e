//! Cleaning a compacted log: of each key the newest record stays, and a tombstone for a while.
//!
//! A *pass* over a partition remembers the newest offset of every key of its dirty part ([`KeyMap`], of fixed size; where it is full the pass ends there and the
//! next one goes on), and then rewrites the log from its first segment up to there, group by group of neighbouring segments ([`plan`]). A record stays
//! when no later one of its key is remembered ([`Pass`]); what stays is put into a new segment ([`RewrittenSegment`]) that covers the same offsets as those that it replaces.
//!
//! Rules, each with the loss that it prevents:
//! - Only sealed, flushed, committed segments are cleaned, and there is a record behind them: a log never ends with offsets that hold nothing, at which a reader would
//!   wait for ever.
//! - Groups are rewritten from the oldest to the newest, and one that can't be ends the pass. So a tombstone gets its time to go only when what it deletes is gone.
//! - A batch that can't be looked into (adopted, too large when decompressed, malformed, with more keys than the map has room for) stays whole, and no tombstone behind it gets its
//!   time to go: a value that it hides would come to life again.
//! - The last batch of a rewritten segment stays, if need be without records: a segment covers its offsets by what is in it.
//!
//! Pure: time and the map's key are arguments. Reading, writing and the switch are the shard's (`shard::cleaner`).

mod key_map;
pub mod plan;
mod rewritten;
mod survivors;
#[cfg(test)]
mod tests;

pub use key_map::KeyMap;
pub use rewritten::{Finished, OutOfReach, RewrittenSegment};
pub use survivors::{Counts, Kept, Mark, Noted, Pass};
