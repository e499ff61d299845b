"""Other projects' formats: adapters of PEFT, and whole models in Hugging Face's layout."""
