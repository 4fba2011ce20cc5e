//! In which order a connection's requests are begun and answered.
//!
//! Kafka's clients match answers to requests by their order (Java fails on another correlation id than the next one), so answers leave in the order of the
//! requests. Appends are begun as they come, so that many are in one journal group, and their answers wait for their turn. Everything else is begun
//! when it is first: what it answers may be large, and then it is queued at once; it sees what the requests before it did.
//!
//! ```text
//! came:  append  fetch  append  metadata          begun at once: both appends
//!          |       |       |        |             begun: fetch, when the first append is answered; metadata, when the second one is
//!        sent -> waits    has its answer, sent behind the fetch's
//! ```
//!
//! A fetch that waits for records so delays what comes after it on its connection, as with Kafka, and nothing else.

use std::collections::VecDeque;

/// Requests of one connection that are not answered: `W` waits to be begun, `A` is an answer.
#[derive(Debug)]
pub struct InOrder<W, A> {
    slots: VecDeque<Slot<W, A>>,
    /// Number of the first slot.
    first: u64,
}

/// The place of a request in the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(u64);

#[derive(Debug)]
enum Slot<W, A> {
    Waiting(W),
    Begun,
    Answered(A),
}

/// What is to be done next.
#[derive(PartialEq, Eq, Debug)]
pub enum Next<W, A> {
    /// Begin this request: it is first.
    Begin(Place, W),
    /// Send this answer: it is first, and has gone from the order.
    Send(A),
}

impl<W, A> Default for InOrder<W, A> {
    fn default() -> InOrder<W, A> {
        InOrder { slots: VecDeque::new(), first: 0 }
    }
}

impl<W, A> InOrder<W, A> {
    /// A request that has been begun.
    pub fn begun(&mut self) -> Place {
        self.push(Slot::Begun)
    }

    /// A request that is to be begun when it is first.
    pub fn waiting(&mut self, request: W) {
        self.push(Slot::Waiting(request));
    }

    fn push(&mut self, slot: Slot<W, A>) -> Place {
        self.slots.push_back(slot);
        Place(self.first + self.slots.len() as u64 - 1)
    }

    /// The answer to a request that was begun.
    ///
    /// # Panics
    /// When that request was answered before or was not begun.
    pub fn answered(&mut self, place: Place, answer: A) {
        let index = place.0.checked_sub(self.first).expect("an answer comes once");
        let slot = self.slots.get_mut(index as usize).expect("a place was given out");
        assert!(matches!(slot, Slot::Begun), "an answer comes once, and to a request that was begun");
        *slot = Slot::Answered(answer);
    }

    /// What is to be done, until there is nothing. Not named `next`: this is no iterator, more may come after `None`.
    pub fn poll(&mut self) -> Option<Next<W, A>> {
        match self.slots.pop_front()? {
            Slot::Answered(answer) => {
                self.first += 1;
                Some(Next::Send(answer))
            }
            Slot::Waiting(request) => {
                self.slots.push_front(Slot::Begun);
                Some(Next::Begin(Place(self.first), request))
            }
            Slot::Begun => {
                self.slots.push_front(Slot::Begun);
                None
            }
        }
    }

    /// Whether every request is answered.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_append_behind_a_fetch_is_begun_and_answered_after_it() {
        let mut order = InOrder::default();
        order.waiting("fetch");
        let append = order.begun();
        let Some(Next::Begin(fetch, "fetch")) = order.poll() else { panic!("the fetch is first") };
        order.answered(append, "appended");
        assert_eq!(order.poll(), None);
        order.answered(fetch, "fetched");
        assert_eq!((order.poll(), order.poll(), order.poll()), (Some(Next::Send("fetched")), Some(Next::Send("appended")), None));
        assert!(order.is_empty());
    }

    proptest! {
        #[test]
        fn answers_leave_in_the_order_of_the_requests(steps in proptest::collection::vec((any::<bool>(), any::<u8>()), 1..200)) {
            let mut order = InOrder::<usize, usize>::default();
            let mut open = Vec::new();
            let mut sent = 0;
            let mut drain = |order: &mut InOrder<usize, usize>, open: &mut Vec<(Place, usize)>| {
                while let Some(next) = order.poll() {
                    match next {
                        Next::Begin(place, request) => {
                            assert_eq!(request, sent, "begun when it is first");
                            open.push((place, request));
                        }
                        Next::Send(answer) => {
                            assert_eq!(answer, sent);
                            sent += 1;
                        }
                    }
                }
            };
            for (number, (is_append, pick)) in steps.iter().enumerate() {
                match is_append {
                    true => open.push((order.begun(), number)),
                    false => order.waiting(number),
                }
                drain(&mut order, &mut open);
                if pick % 2 == 0 && !open.is_empty() {
                    let (place, number) = open.swap_remove(*pick as usize % open.len());
                    order.answered(place, number);
                    drain(&mut order, &mut open);
                }
            }
            while !open.is_empty() {
                let (place, number) = open.swap_remove(open.len() / 2);
                order.answered(place, number);
                drain(&mut order, &mut open);
            }
            prop_assert!(order.is_empty());
            prop_assert_eq!(sent, steps.len());
        }
    }
}
