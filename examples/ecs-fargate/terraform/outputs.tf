output "task_definition" {
  description = "The ARN of the task definition"
  value       = aws_ecs_task_definition.task.arn
}

output "delivery_stream" {
  description = "The ARN of the delivery stream"
  value       = aws_kinesis_firehose_delivery_stream.logs.arn
}
