//! The host's metrics page: cmetrics, shown under `/api/v2/metrics`.
//!
//! The host's executable exports cmetrics, so its functions are looked up by name; a host without them, or built without
//! metrics, has no page. Its structs are never accessed. Not every version locks a page while metrics are added, so all are
//! created in Init, when the host does nothing else; afterwards only values are set, which are atomics there.

use std::ffi::{CStr, CString, c_char, c_double, c_int, c_void};

use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use super::symbols::{function, symbol};
use crate::metrics::{BUCKETS, Figure, Kind, MetricsPage, NAME_LABEL, Values};

/// The value of an unset gauge: a metric cannot be removed once it is created.
const UNSET: f64 = -1.0;

/// `flb_output_get_cmt_instance`: returns an output's page.
pub(super) type GetPage = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

type GetName = unsafe extern "C" fn(*mut c_void) -> *const c_char;
/// `cmt_counter_create`, `cmt_gauge_create`: page, namespace, subsystem, name, help, labels.
type Create = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    *const c_char,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
) -> *mut c_void;
/// `cmt_counter_set`, `cmt_gauge_set`: metric, nanoseconds since 1970, value, labels' values.
type Set = unsafe extern "C" fn(*mut c_void, u64, c_double, c_int, *const *const c_char) -> c_int;
/// `cmt_histogram_buckets_create_size`: copies the bounds.
type CreateBuckets = unsafe extern "C" fn(*const c_double, usize) -> *mut c_void;
/// `cmt_histogram_create`: as [`Create`], with buckets, of which it takes ownership.
type CreateHistogram = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    *const c_char,
    *const c_char,
    *const c_char,
    *mut c_void,
    c_int,
    *const *const c_char,
) -> *mut c_void;
/// `cmt_histogram_set_default`: as [`Set`], with the cumulative counts, the sum, the total count.
type SetHistogram = unsafe extern "C" fn(
    *mut c_void,
    u64,
    *const u64,
    c_double,
    u64,
    c_int,
    *const *const c_char,
) -> c_int;

/// The functions of cmetrics. Its parameters are not `const`, but it writes through none of them.
#[derive(Clone, Copy)]
struct Functions {
    create_counter: Create,
    set_counter: Set,
    create_gauge: Create,
    set_gauge: Set,
    create_buckets: CreateBuckets,
    create_histogram: CreateHistogram,
    set_histogram: SetHistogram,
}

impl Functions {
    fn look_up() -> Option<Functions> {
        Some(Functions {
            // SAFETY: cmetrics declares it so (cmt_counter.h of its version 2.2); these are the functions that
            // the host's own plugins call, and keep their parameters.
            create_counter: unsafe { function(c"cmt_counter_create") }?,
            // SAFETY: as above.
            set_counter: unsafe { function(c"cmt_counter_set") }?,
            // SAFETY: as above.
            create_gauge: unsafe { function(c"cmt_gauge_create") }?,
            // SAFETY: as above.
            set_gauge: unsafe { function(c"cmt_gauge_set") }?,
            // SAFETY: as above.
            create_buckets: unsafe { function(c"cmt_histogram_buckets_create_size") }?,
            // SAFETY: as above.
            create_histogram: unsafe { function(c"cmt_histogram_create") }?,
            // SAFETY: as above.
            set_histogram: unsafe { function(c"cmt_histogram_set_default") }?,
        })
    }
}

/// A metric on the page.
struct Metric {
    /// Owned by the host, which frees it with the page.
    handle: *mut c_void,
    /// The label values of each time series.
    labels: Vec<Vec<CString>>,
}

/// The page of one output.
pub(super) struct HostMetricsPage {
    name: Option<String>,
    /// `None`: the host has no page.
    page: Option<(Functions, *mut c_void)>,
    /// The created metrics; `None` before that and after the page is closed.
    metrics: Mutex<Option<Vec<Option<Metric>>>>,
}

// SAFETY: `page` and the handles are only passed to cmetrics' functions: in Init on the host's own thread, and
// then only to set values, which it allows from any thread; not any more after `close`.
unsafe impl Send for HostMetricsPage {}
// SAFETY: as above; mutable state is behind a lock.
unsafe impl Sync for HostMetricsPage {}

impl HostMetricsPage {
    /// The page of `output`.
    ///
    /// # Safety
    /// `output` is the host's own pointer for an output, valid until that output's exit, and by then the
    /// metrics_page is closed; `get_page` is what the host passes as `output_get_cmt_instance`, which need not be
    /// valid: a host that was built without metrics passes anything.
    pub(super) unsafe fn new(get_page: Option<GetPage>, output: *mut c_void) -> HostMetricsPage {
        // SAFETY: Fluent Bit declares it so (flb_output.h).
        let get_name: Option<GetName> = unsafe { function(c"flb_output_name") };
        let name = get_name.and_then(|get_name| {
            // SAFETY: the host's function with the host's pointer, valid by this function's contract.
            let name = unsafe { get_name(output) };
            if name.is_null() {
                return None;
            }
            // SAFETY: a C string of the host's that lives as long as the output; copied at once.
            let name = unsafe { CStr::from_ptr(name) };
            Some(name.to_string_lossy().into_owned())
        });
        let known = symbol(c"flb_output_get_cmt_instance");
        let get_page = get_page.filter(|get| !known.is_null() && *get as *mut c_void == known);
        let page = get_page.and_then(|get_page| {
            // SAFETY: it is the host's own function, found by its name as well, with the host's pointer.
            let page = unsafe { get_page(output) };
            let functions = Functions::look_up()?;
            (!page.is_null()).then_some((functions, page))
        });
        HostMetricsPage {
            name,
            page,
            metrics: Mutex::new(None),
        }
    }

    fn metrics(&self) -> MutexGuard<'_, Option<Vec<Option<Metric>>>> {
        // A panic may leave the page partly updated; it is updated again a second later.
        self.metrics
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Creates a metric. Returns `None` if the host refuses it.
    fn create(
        functions: &Functions,
        page: *mut c_void,
        name: &CStr,
        figure: &Figure,
    ) -> Option<Metric> {
        let family = figure.family;
        let title = CString::new(family.name.strip_prefix("ferry_")?).ok()?;
        let help = CString::new(family.help).ok()?;
        let mut keys = vec![CString::new(NAME_LABEL).ok()?];
        let mut labels = Vec::new();
        match family.label {
            Some((key, values)) => {
                keys.push(CString::new(key).ok()?);
                for value in values {
                    labels.push(vec![name.to_owned(), CString::new(*value).ok()?]);
                }
            }
            None => labels.push(vec![name.to_owned()]),
        }
        let keys = pointers(&keys);
        let count = length(&keys);
        let (space, none) = (c"ferry".as_ptr(), c"".as_ptr());
        let (title, help) = (title.as_ptr(), help.as_ptr());
        let handle = match family.kind {
            Kind::Counter | Kind::Gauge => {
                let create = match family.kind {
                    Kind::Counter => functions.create_counter,
                    _ => functions.create_gauge,
                };
                // SAFETY: the page is the output's, in its Init; C strings that live through the call,
                // which copies them, and `count` keys.
                unsafe { create(page, space, none, title, help, count, keys.as_ptr()) }
            }
            Kind::Histogram => {
                // SAFETY: `BUCKETS.len()` bounds; it copies them.
                let buckets =
                    unsafe { (functions.create_buckets)(BUCKETS.as_ptr(), BUCKETS.len()) };
                if buckets.is_null() {
                    return None;
                }
                let create = functions.create_histogram;
                // SAFETY: as above; the buckets are new, and ownership passes to the histogram.
                unsafe {
                    create(
                        page,
                        space,
                        none,
                        title,
                        help,
                        buckets,
                        count,
                        keys.as_ptr(),
                    )
                }
            }
        };
        (!handle.is_null()).then_some(Metric { handle, labels })
    }

    fn set(functions: &Functions, metric: &Metric, figure: &Figure, now: u64) {
        match &figure.values {
            Values::Each(each) => {
                let set = match figure.family.kind {
                    Kind::Counter => functions.set_counter,
                    Kind::Gauge | Kind::Histogram => functions.set_gauge,
                };
                for (value, labels) in each.iter().zip(&metric.labels) {
                    let labels = pointers(labels);
                    let (value, count) = (value.unwrap_or(UNSET), length(&labels));
                    // SAFETY: the handle is of this kind, and its page exists until `close`; as many
                    // labels as it was created with, C strings that live through the call.
                    unsafe { set(metric.handle, now, value, count, labels.as_ptr()) };
                }
            }
            Values::Times { up_to, seconds } => {
                let [labels] = &metric.labels[..] else { return };
                let labels = pointers(labels);
                let (all, count) = (up_to.last().copied().unwrap_or_default(), length(&labels));
                if up_to.len() != BUCKETS.len() + 1 {
                    return;
                }
                let (set, up_to) = (functions.set_histogram, up_to.as_ptr());
                // SAFETY: as above; `up_to` has an element for each bucket that the histogram was created with,
                // and for the one that cmetrics adds, as it reads them.
                unsafe {
                    set(
                        metric.handle,
                        now,
                        up_to,
                        *seconds,
                        all,
                        count,
                        labels.as_ptr(),
                    )
                };
            }
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

fn length(strings: &[*const c_char]) -> c_int {
    c_int::try_from(strings.len()).expect("two at most")
}

fn nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

impl MetricsPage for HostMetricsPage {
    fn name(&self) -> Option<String> {
        self.name.clone()
    }

    fn register(&self, name: &str, figures: &[Figure]) -> bool {
        let (Some((functions, page)), Ok(name)) = (&self.page, CString::new(name)) else {
            return false;
        };
        let create = |figure| HostMetricsPage::create(functions, *page, &name, figure);
        *self.metrics() = Some(figures.iter().map(create).collect());
        self.show(figures);
        true
    }

    fn show(&self, figures: &[Figure]) {
        let metrics = self.metrics();
        let (Some((functions, _)), Some(metrics)) = (&self.page, &*metrics) else {
            return;
        };
        let now = nanoseconds();
        for (metric, figure) in metrics.iter().zip(figures) {
            if let Some(metric) = metric {
                HostMetricsPage::set(functions, metric, figure, now);
            }
        }
    }

    fn close(&self) {
        *self.metrics() = None;
    }
}
