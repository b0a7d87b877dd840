use leaderd::userspace::request::{Request, read_all};

/// What is sent to the socket of `leaderd userspace`: a request that is understood is understood the same when it is said again.
pub fn wireguard_request(bytes: &[u8]) {
    for request in read_all(bytes).into_iter().flatten() {
        if let Request::Set(set) = request {
            assert_eq!(read_all(set.to_string().as_bytes()), [Ok(Request::Set(set))]);
        }
    }
}
