"""Sends the examples' policies, task definition and delivery stream to moto with AWS's own client,
which validates the shape of each call. Arguments: moto's URL, the folder of the examples."""

import json
import pathlib
import sys

import boto3

endpoint, examples = sys.argv[1], pathlib.Path(sys.argv[2])


def client(service):
    return boto3.client(
        service,
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )


def document(path):
    return (examples / path).read_text()


taken = 0
for path in [
    "ecs-fargate/task-role-policy.json",
    "ecs-fargate/firehose-role-policy.json",
    "elastic-beanstalk/instance-role-policy.json",
    "systemd/instance-role-policy.json",
]:
    name = path.replace("/", "-").removesuffix(".json")
    client("iam").create_policy(PolicyName=name, PolicyDocument=document(path))
    taken += 1

for role in ["task", "firehose"]:
    trust = document(f"ecs-fargate/{role}-role-trust.json")
    client("iam").create_role(RoleName=role, AssumeRolePolicyDocument=trust)
    taken += 1

task = json.loads(document("ecs-fargate/task-definition.json"))
client("ecs").register_task_definition(**task)
client("s3").create_bucket(Bucket="shop-logs")
stream = json.loads(document("ecs-fargate/delivery-stream.json"))
client("firehose").create_delivery_stream(**stream)
print("taken:", taken + 2)
