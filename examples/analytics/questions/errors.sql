-- Which service, on which host, failed on which route, and when? Parameters: from, to, bucket (minute, hour, day).
SELECT date_trunc($bucket, logged_at) AS since,
       service,
       host,
       method,
       route,
       count(*) FILTER (WHERE status BETWEEN 400 AND 499) AS client_errors,
       count(*) FILTER (WHERE status >= 500) AS server_errors,
       count(*) AS requests
FROM events
WHERE status IS NOT NULL AND logged_at >= $from AND logged_at < $to
GROUP BY 1, 2, 3, 4, 5
HAVING count(*) FILTER (WHERE status >= 400) > 0
ORDER BY since, server_errors DESC, client_errors DESC, service, host, method, route
