SECRET_KEY = "only for this example"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mysite.urls"
TIME_ZONE = "UTC"
