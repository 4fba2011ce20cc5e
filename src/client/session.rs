//! One connection's requests: correlation ids, what is in flight, how long it may take. A pure state machine.
//!
//! Requests are pipelined. An answer names its request by the correlation id, which rises by one with each; a broker may answer a
//! long poll after later requests. An answer that nobody waits for is a breach of the protocol, because nothing is
//! ever forgotten here while the connection lives: a request that takes too long, while nothing moves, ends the connection, and with it every
//! request on it.

use std::collections::VecDeque;

/// Microseconds since some start that the shell has chosen.
pub(super) type Micros = u64;

/// A request that is not answered after so many time-outs more is given up, whatever else moves on its connection.
const LONGEST: Micros = 19;

/// An answer that has not come after so long is late, microseconds: reason to ask others whether this broker is there.
const LATE: Micros = 1_000_000;

/// The in-flight table; `C` is what the shell does with an answer.
#[derive(Debug)]
pub(super) struct Session<C> {
    next_correlation: u64,
    /// In the order of their correlation ids; an answered one in the middle is an empty place.
    in_flight: VecDeque<Place<C>>,
    waiting: usize,
}

#[derive(Debug)]
struct Place<C> {
    correlation: u64,
    deadline: Micros,
    timeout: Micros,
    completion: Option<C>,
}

/// An answer to no request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an answer to request {correlation}, which is not in flight")]
pub(super) struct UnexpectedAnswer {
    pub correlation: u64,
}

impl<C> Session<C> {
    pub fn new() -> Session<C> {
        Session { next_correlation: 1, in_flight: VecDeque::new(), waiting: 0 }
    }

    /// The correlation id of a request that is sent now and answered within `timeout`.
    pub fn begin(&mut self, now: Micros, timeout: Micros, completion: C) -> u64 {
        let correlation = self.begin_unanswered();
        self.in_flight.push_back(Place { correlation, deadline: now.saturating_add(timeout), timeout, completion: Some(completion) });
        self.waiting += 1;
        correlation
    }

    /// The correlation id of a request that gets no answer.
    pub fn begin_unanswered(&mut self) -> u64 {
        self.next_correlation += 1;
        self.next_correlation - 1
    }

    /// Takes back the newest request, which could not be sent after all.
    pub fn cancel_last(&mut self) -> Option<C> {
        self.next_correlation -= 1;
        self.waiting -= 1;
        self.in_flight.pop_back().and_then(|place| place.completion)
    }

    /// Who waits for the answer with this correlation id.
    ///
    /// # Errors
    /// Nobody does.
    pub fn handle_answer(&mut self, correlation: u64) -> Result<C, UnexpectedAnswer> {
        let unexpected = UnexpectedAnswer { correlation };
        let at = self.in_flight.binary_search_by_key(&correlation, |place| place.correlation).map_err(|_| unexpected)?;
        let completion = self.in_flight[at].completion.take().ok_or(unexpected)?;
        self.waiting -= 1;
        while self.in_flight.front().is_some_and(|place| place.completion.is_none()) {
            self.in_flight.pop_front();
        }
        Ok(completion)
    }

    /// The time-out of the first request that is over its deadline, if one is. `progress` is when bytes last moved on the connection: an answer
    /// that is
    /// on its way takes as long as it takes, and so does what waits behind it. Cut off, it would begin again at its first byte, for ever. After
    /// [`LONGEST`] time-outs nothing is on its way any more, whatever else moves.
    pub fn poll_expired(&self, now: Micros, progress: Micros) -> Option<Micros> {
        let is_over = |place: &&Place<C>| {
            let last = place.deadline.saturating_add(place.timeout.saturating_mul(LONGEST));
            place.completion.is_some() && place.deadline.max(progress.saturating_add(place.timeout)).min(last) <= now
        };
        self.in_flight.iter().find(is_over).map(|place| place.timeout)
    }

    /// Whether an answer is late: one that is not held back (its time-out is `usual`), or that was to be held back no longer, has not come for a
    /// while, and nothing else has either.
    pub fn is_overdue(&self, now: Micros, progress: Micros, usual: Micros) -> bool {
        let is_late = |place: &Place<C>| {
            let (begun, held_back) = (place.deadline.saturating_sub(place.timeout), place.timeout.saturating_sub(usual));
            place.completion.is_some() && begun.max(progress).saturating_add(held_back).saturating_add(LATE) <= now
        };
        self.in_flight.iter().any(is_late)
    }

    /// Requests that wait for their answers.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The connection is over: everyone who still waits, in the order of the requests.
    pub fn take_all(&mut self) -> Vec<C> {
        self.waiting = 0;
        self.in_flight.drain(..).filter_map(|place| place.completion).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_out_of_order_reach_whom_they_are_for() {
        let mut session = Session::new();
        let ids: Vec<u64> = ["a", "b", "c"].into_iter().map(|name| session.begin(0, 10, name)).collect();
        assert_eq!(session.handle_answer(ids[1]), Ok("b"));
        assert_eq!(session.handle_answer(ids[1]), Err(UnexpectedAnswer { correlation: ids[1] }), "twice");
        assert_eq!(session.handle_answer(ids[0]), Ok("a"));
        assert_eq!(session.handle_answer(99), Err(UnexpectedAnswer { correlation: 99 }), "never asked");
        assert_eq!(session.waiting(), 1);
        assert_eq!(session.take_all(), ["c"]);
        assert_eq!(session.handle_answer(ids[2]), Err(UnexpectedAnswer { correlation: ids[2] }), "after the end");
    }

    #[test]
    fn an_unanswered_request_has_an_id_and_nobody_waits() {
        let mut session: Session<()> = Session::new();
        let id = session.begin_unanswered();
        assert_eq!(session.waiting(), 0);
        assert!(session.handle_answer(id).is_err());
        assert!(session.begin(0, 1, ()) > id);
    }

    #[test]
    fn a_cancelled_request_leaves_no_trace() {
        let mut session = Session::new();
        let id = session.begin(0, 1, "x");
        assert_eq!(session.cancel_last(), Some("x"));
        assert_eq!((session.waiting(), session.begin(0, 1, "y")), (0, id));
    }

    #[test]
    fn the_deadline_counts_only_while_the_answer_is_awaited() {
        let mut session = Session::new();
        let short = session.begin(100, 50, ());
        session.begin(100, 500, ());
        assert_eq!(session.poll_expired(149, 0), None);
        assert_eq!(session.poll_expired(150, 0), Some(50));
        session.handle_answer(short).unwrap();
        assert_eq!(session.poll_expired(599, 0), None);
        assert_eq!(session.poll_expired(600, 0), Some(500));
    }

    #[test]
    fn a_request_is_not_over_its_time_while_bytes_move() {
        let mut session = Session::new();
        session.begin(100, 50, ());
        assert_eq!(session.poll_expired(150, 101), None);
        assert_eq!(session.poll_expired(1000, 951), None);
        assert_eq!(session.poll_expired(1000, 950), Some(50));
        assert_eq!(session.poll_expired(1099, 1099), None);
        assert_eq!(session.poll_expired(1100, 1100), Some(50), "an answer that is lost among others is given up in the end");
    }

    #[test]
    fn an_answer_is_late_after_its_usual_time() {
        const USUAL: Micros = 30_000_000;
        let mut session = Session::new();
        assert!(!session.is_overdue(100 * LATE, 0, USUAL), "nothing is awaited");
        let long_poll = session.begin(0, USUAL + 5 * LATE, ());
        assert!(!session.is_overdue(6 * LATE - 1, 0, USUAL) && session.is_overdue(6 * LATE, 0, USUAL));
        assert!(!session.is_overdue(6 * LATE, 1, USUAL), "something has come");
        let prompt = session.begin(2 * LATE, USUAL, ());
        assert!(!session.is_overdue(3 * LATE - 1, 0, USUAL) && session.is_overdue(3 * LATE, 0, USUAL));
        session.handle_answer(prompt).unwrap();
        assert!(!session.is_overdue(3 * LATE, 0, USUAL));
        session.handle_answer(long_poll).unwrap();
        assert!(!session.is_overdue(100 * LATE, 0, USUAL));
    }

    proptest! {
        #[test]
        fn everyone_is_answered_exactly_once(order in proptest::collection::vec(any::<u16>(), 0..200)) {
            let mut session = Session::new();
            let mut open = vec![];
            let mut answered = vec![];
            for pick in order {
                if pick % 2 == 0 || open.is_empty() {
                    let name = session.next_correlation;
                    prop_assert_eq!(session.begin(0, 1, name), name);
                    open.push(name);
                } else {
                    let name = open.remove(usize::from(pick) % open.len());
                    answered.push(session.handle_answer(name).unwrap());
                    prop_assert_eq!(*answered.last().unwrap(), name);
                }
                prop_assert_eq!(session.waiting(), open.len());
            }
            prop_assert_eq!(session.take_all(), open);
        }
    }
}
