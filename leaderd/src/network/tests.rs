use super::failed_parts::failed_parts;
use super::*;

struct Fake {
    /// The outcome of each programming in turn; further ones succeed.
    outcomes: Vec<Result<FailedParts, String>>,
    /// The result of the first comparison; later ones return what the last programming left.
    repairs: Option<Repairs>,
    seen: mpsc::UnboundedSender<Network>,
    notes: Vec<String>,
    left: FailedParts,
}

impl Reconciler for Fake {
    fn backend(&self) -> String {
        "wireguard-go".into()
    }
    async fn program(&mut self, network: Network) -> Result<FailedParts, String> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let outcome = match self.outcomes.is_empty() {
            true => Ok(FailedParts::default()),
            false => self.outcomes.remove(0),
        };
        if let Ok(failed) = &outcome {
            self.left = failed.clone();
            self.seen.send(network).map_err(|e| e.to_string())?;
        }
        outcome
    }
    async fn reconcile(&mut self) -> Repairs {
        let left = Repairs { made: Vec::new(), failed: Ok(self.left.clone()) };
        self.repairs.take().unwrap_or(left)
    }
    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
    fn overridden(&mut self, checks: &[RouteCheck]) -> Vec<OverriddenRoute> {
        let other = |c: &RouteCheck| OverriddenRoute { check: c.clone(), found: "gone".into() };
        checks.iter().map(other).collect()
    }
    async fn drift(&mut self) -> bool {
        std::future::pending().await
    }
}

struct Bench {
    programs: watch::Sender<Program>,
    checks: watch::Sender<Vec<RouteCheck>>,
    reported: mpsc::Receiver<Input>,
    seen: mpsc::UnboundedReceiver<Network>,
    counters: Counters,
}

impl Bench {
    async fn new(outcomes: Vec<Result<FailedParts, String>>, repairs: Option<Repairs>) -> Self {
        let (fed, seen) = mpsc::unbounded_channel();
        let (programs, programs_rx) = watch::channel(None);
        let (checks, checks_rx) = watch::channel(Vec::new());
        let (inputs, reported) = mpsc::channel(64);
        let counters = Counters::default();
        let silent = watch::channel(BTreeSet::new()).0;
        let outputs = Outputs { inputs, silent, counters: counters.clone() };
        let notes = vec!["transit is tracked".into()];
        let fake = Fake { outcomes, repairs, seen: fed, notes, left: FailedParts::default() };
        let orders = Orders { programs: programs_rx, checks: checks_rx };
        start(move || async move { Ok(fake) }, orders, outputs).await.unwrap();
        Self { programs, checks, reported, seen, counters }
    }

    fn program(&self, revision: u64) {
        self.programs.send_replace(Some((revision, marked(&format!("r{revision}")))));
    }

    async fn next(&mut self) -> Input {
        let next = tokio::time::timeout(Duration::from_secs(30), self.reported.recv());
        next.await.expect("it reports something").unwrap()
    }

    /// The next programming's end, and the notes that came before it.
    async fn programmed(&mut self) -> (u64, Option<String>, Vec<String>) {
        let mut before = Vec::new();
        loop {
            match self.next().await {
                Input::Programmed { revision, error } => return (revision, error, before),
                Input::HostNotes { part, notes } => {
                    assert_eq!(part, "network");
                    before = notes;
                }
                Input::Local(facts) => assert_eq!(facts.backend, "wireguard-go"),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn marked(mark: &str) -> Box<Network> {
    Box::new(Network { sysctls: [(mark.to_owned(), "1".to_owned())].into(), ..Network::default() })
}

#[tokio::test]
async fn the_newest_network_is_programmed_until_it_succeeds_and_those_between_are_skipped() {
    let busy = || Err("busy".to_owned());
    let mut bench = Bench::new(vec![busy(), busy()], None).await;
    (1..=20).for_each(|revision| bench.program(revision));
    let mut errors = 0;
    loop {
        match bench.programmed().await {
            (_, Some(_), _) => errors += 1,
            (revision, None, _) => {
                assert_eq!(revision, 20);
                break;
            }
        }
    }
    assert_eq!(errors, 2);
    assert_eq!(bench.seen.recv().await.unwrap(), *marked("r20"));
}

#[tokio::test]
async fn a_part_that_the_kernel_refuses_twice_keeps_nothing_else_from_being_in_force() {
    let no_ipv6 = || Ok(failed_parts(&["address fd00::1/128 dev wgl0", "route fd01::/64"]));
    let more = Ok(failed_parts(&["address fd00::1/128 dev wgl0", "route fd01::/64", "link lvx0"]));
    let outcomes = vec![no_ipv6(), no_ipv6(), no_ipv6(), more, Ok(FailedParts::default())];
    let mut bench = Bench::new(outcomes, None).await;
    bench.program(1);
    let (revision, error, _) = bench.programmed().await;
    assert_eq!(revision, 1);
    assert!(error.is_some_and(|e| e.contains("fd00::1")), "it may be for a moment: once more");
    let (revision, error, notes) = bench.programmed().await;
    assert_eq!((revision, error), (1, None), "all else is in force");
    assert_eq!(notes.len(), 2, "what is tracked, and what is refused: {notes:?}");
    assert!(notes[1].starts_with("2 parts of this node's network cannot be programmed"));
    assert!(notes[1].contains("fd00::1") && notes[1].contains("fd01::"), "{notes:?}");
    assert_eq!(bench.counters.get("network_parts_failing"), 2);

    bench.program(2);
    let (revision, error, _) = bench.programmed().await;
    assert_eq!((revision, error), (2, None), "the next decision does not wait for it");
    bench.program(3);
    let (revision, error, _) = bench.programmed().await;
    assert!((revision, error.is_some()) == (3, true), "one more part: that may be for a moment");
    let (revision, error, notes) = bench.programmed().await;
    assert_eq!((revision, error), (3, None));
    assert_eq!(notes, ["transit is tracked"], "the repair is reported");
    assert_eq!(bench.counters.get("network_parts_failing"), 0);
}

#[tokio::test]
async fn a_repair_that_fails_in_part_counts_as_what_it_repaired_and_as_an_error() {
    let made = vec!["add route".to_owned(), "set up".to_owned()];
    let repairs = Repairs { made, failed: Ok(failed_parts(&["route 10.1.0.0/24"])) };
    let bench = Bench::new(Vec::new(), Some(repairs)).await;
    bench.program(1);
    let deadline = Instant::now() + Duration::from_secs(30);
    while bench.counters.get("repair_errors") == 0 {
        assert!(Instant::now() < deadline, "nothing is compared");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((bench.counters.get("repairs"), bench.counters.get("repair_errors")), (2, 1));
}

#[tokio::test]
async fn a_reconciler_that_cannot_be_made_stops_the_start_with_its_reason() {
    let (_programs, programs) = watch::channel(None);
    let (_checks, checks) = watch::channel(Vec::new());
    let make = || async { Err::<Fake, _>(anyhow::anyhow!("/dev/net/tun is missing")) };
    let silent = watch::channel(BTreeSet::new()).0;
    let outputs = Outputs { inputs: mpsc::channel(1).0, silent, counters: Counters::default() };
    let error = start(make, Orders { programs, checks }, outputs).await.unwrap_err();
    assert!(error.to_string().contains("/dev/net/tun"));
}

#[tokio::test]
async fn packets_that_the_kernel_sends_elsewhere_are_reported_once_and_not_before_the_network_is_there()
 {
    let mut bench = Bench::new(Vec::new(), None).await;
    let check = RouteCheck {
        location: "cloud".parse().unwrap(),
        source: "10.42.1.1".parse().unwrap(),
        target: "10.42.2.1".parse().unwrap(),
        iif: None,
    };
    bench.checks.send_replace(vec![check.clone()]);
    bench.program(1);
    let (mut programmed, mut reports) = (false, 0);
    while reports == 0 {
        match bench.next().await {
            Input::Programmed { .. } => programmed = true,
            Input::Overridden(routes) => {
                assert!(programmed);
                assert_eq!(routes.len(), 1);
                assert_eq!(routes[0].check, check);
                reports += 1;
            }
            _ => {}
        }
    }
    bench.checks.send_replace(vec![check]);
    bench.program(2);
    let (_, error, _) = bench.programmed().await;
    assert_eq!(error, None, "the same is not reported again");
    bench.checks.send_replace(Vec::new());
    loop {
        if let Input::Overridden(routes) = bench.next().await {
            assert_eq!(routes, []);
            break;
        }
    }
}
