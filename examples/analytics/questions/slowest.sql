-- Which routes are slow, and how slow for most, for some, for few? Parameters: from, to, limit.
SELECT service,
       method,
       route,
       count(*) AS requests,
       percentile_cont(0.50) WITHIN GROUP (ORDER BY took_ms) AS p50_ms,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY took_ms) AS p95_ms,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY took_ms) AS p99_ms
FROM events
WHERE status IS NOT NULL AND took_ms IS NOT NULL AND logged_at >= $from AND logged_at < $to
GROUP BY 1, 2, 3
ORDER BY p95_ms DESC, service, method, route
LIMIT $limit
