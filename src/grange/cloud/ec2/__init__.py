"""Amazon EC2: `cloud.Ec2Cloud`, which wants boto3, and `settings`, which do not."""
