//! A wake-up for tasks of one executor.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Wakes every task that waits, once per [`Event::notify`]. A notification with nobody waiting is lost, so a waiter takes its ticket
/// *before* it looks at the state that it waits for.
#[derive(Default)]
pub struct Event {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

/// The moment from which notifications count.
#[derive(Clone, Copy)]
pub struct Ticket(u64);

impl Event {
    /// A new event, shared.
    pub fn shared() -> Rc<Event> {
        Rc::default()
    }

    /// Notifications from here on end a wait for this ticket.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.count.get())
    }

    /// Wakes all that wait.
    pub fn notify(&self) {
        self.count.set(self.count.get() + 1);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Returns once the event was notified after `ticket`.
    pub async fn wait(&self, ticket: Ticket) {
        poll_fn(|context| {
            if self.count.get() != ticket.0 {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|w| w.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn forget(&self, waker: &Waker) {
        self.waiting.borrow_mut().retain(|w| !w.will_wake(waker));
    }

    /// As [`Event::wait`], but no longer than until `deadline`; true if notified.
    pub async fn wait_until(&self, ticket: Ticket, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return self.count.get() != ticket.0;
        }
        let timer = glommio::timer::Timer::new(left);
        futures_util::pin_mut!(timer);
        let wait = self.wait(ticket);
        futures_util::pin_mut!(wait);
        matches!(futures_util::future::select(wait, timer).await, futures_util::future::Either::Left(_))
    }
}

/// Returns true once any of the events was notified after its ticket, false at the deadline. Leaves nothing behind in the events, also when it is dropped.
pub async fn wait_any(events: &[(&Event, Ticket)], deadline: Instant) -> bool {
    let waiting = Waiting { events, waker: RefCell::new(None) };
    let notified = poll_fn(|context| {
        if events.iter().any(|(event, ticket)| event.count.get() != ticket.0) {
            return Poll::Ready(());
        }
        *waiting.waker.borrow_mut() = Some(context.waker().clone());
        for (event, _) in events {
            let mut waiting = event.waiting.borrow_mut();
            if !waiting.iter().any(|w| w.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
        }
        Poll::Pending
    });
    futures_util::pin_mut!(notified);
    let timer = glommio::timer::Timer::new(deadline.saturating_duration_since(Instant::now()));
    futures_util::pin_mut!(timer);
    matches!(futures_util::future::select(notified, timer).await, futures_util::future::Either::Left(_))
}

/// One waker in several events.
struct Waiting<'a> {
    events: &'a [(&'a Event, Ticket)],
    waker: RefCell<Option<Waker>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(waker) = self.waker.take() {
            self.events.iter().for_each(|(event, _)| event.forget(&waker));
        }
    }
}
