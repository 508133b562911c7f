"""What pages for people are made of: HTML escaped by construction, charts, a page in one file. Knows neither half."""
